"""What was said, and that it was not changed: events, their canonical bytes, the log and its Merkle tree."""
