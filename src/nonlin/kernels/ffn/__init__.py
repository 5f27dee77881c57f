"""The feed-forward block as one registered operation of torch, and its short way past the dispatcher."""
