"""The verbs of `turbopress` beyond the first: one module a subject, each verb a function that cli.py registers."""
