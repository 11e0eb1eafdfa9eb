"""The page in a browser: settings, jobs, and the page itself. Only the page and its tabs need Gradio."""
