"""Training schemes, one file each."""
