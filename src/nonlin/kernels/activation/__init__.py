"""An activation as a registered operation of torch, and its fast path, which bypasses the dispatcher."""
