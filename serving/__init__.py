"""What happens to an artifact on a server: how much memory it takes, how LMDeploy is told to run it, and talking to it.

`profile` is what an engine is told, `memory` what that costs before anything is started, `server` the running process,
`client` the OpenAI protocol, `pipeline` a model in this process. Artifacts are read here and never made.

    from serving import pipeline
    pipe = pipeline("models/awq-w4")
    print(pipe("Once upon a time").text)
"""

from serving.inprocess import pipeline as pipeline
