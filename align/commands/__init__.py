"""What the shell does; everything below is a library that never prints."""
