"""Follow-Your-Emoji-Faster: a still portrait and a driving face video give an animated portrait."""
