"""The page in a browser: what it offers, the jobs behind it, and the page itself. Only `page` needs Gradio."""
