"""The chat page: talking to a variant in a browser, and two of them side by side. Needs the extra [web]."""
