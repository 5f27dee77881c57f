"""The feed-forward block as one registered operation of torch, and its fast path, which bypasses the dispatcher."""
