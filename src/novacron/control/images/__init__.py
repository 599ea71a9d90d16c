"""Images: files machines start from, uploaded, inspected and kept by content digest."""
