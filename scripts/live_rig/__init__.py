"""Real vLLM servers on a CPU: making their environment and models, running them, testing and recording against them.

    environment   where things are kept; the virtual environments; Impossible
    weights       the tiny models, made once
    servers       how each server is started, waited for and stopped
    live          scripts/live
    wire          one exchange over a plain socket, byte for byte
    transcripts   requests out of transcripts, transcripts out of exchanges, what differs between two
    record        scripts/record
"""
