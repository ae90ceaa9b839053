"""The training tab: the only room that knows gradio, in each of the versions that hosts bring."""
