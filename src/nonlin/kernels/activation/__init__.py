"""An activation as a registered operation of torch, and its short way past the dispatcher."""
