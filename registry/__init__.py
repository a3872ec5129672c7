"""What happens to a compressed model after it is made: sealed, registered, found again, shipped.

`manifest` seals a folder, `publish` enters it into MLflow, `promote` moves an alias, `resolve` finds it again, `ship`
sends it to servers. Nothing here imports torch or `compress`: an artifact is a folder of files, and this package would
serve any model that arrives as one.
"""
