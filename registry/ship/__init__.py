"""Shipping a registered artifact to where servers read it.

A `Place` is a folder, an sftp:// or an s3:// address; under it lie immutable `releases/<digest>/` and one pointer,
`current`. `verbs` is what a person asks for: export, rollback, releases, gc.
"""
