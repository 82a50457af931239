"""What `proj health` reads. It imports little besides the standard library, so that it is fast."""
