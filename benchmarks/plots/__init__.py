"""The pictures of the documents, each drawn from a file of results."""
