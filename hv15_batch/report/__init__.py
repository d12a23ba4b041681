"""Pages of run directories: `index.html`, with its assets and the clips beside it.

Reads run directories, never a model. `_read` takes in what lies there, `_view` decides what is
shown, `render` writes it; `_comparison` does the same for several runs.
"""
