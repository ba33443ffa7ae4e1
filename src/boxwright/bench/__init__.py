"""Speed and accuracy of the very same file."""
