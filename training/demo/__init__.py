"""A page in the browser: drop a picture, and see what networks say of it and where they look.

`networks` asks them, `overlay` draws, `page` is the page itself, the only file that imports Gradio.
"""
