"""EmojiDiff: still pictures of one person's identity with the expression of another picture."""
