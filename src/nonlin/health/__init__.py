"""What is wrong inside a model: measures of its feed-forward blocks, findings, and what to do about them."""
