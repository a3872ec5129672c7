"""What happens to a compressed model after it is made: sealed, registered, found again, shipped.

`manifest` seals a folder, `publish` enters it into MLflow, `resolve` finds it again, `export` ships it. Nothing
here imports torch or `compress`: an artifact is a folder of files, and this package would serve any model that
arrives as one.
"""
