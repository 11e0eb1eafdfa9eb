"""One animation, from files to a file."""
