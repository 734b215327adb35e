"""The vocabulary: what one may ask of a server, by kind of model; how a call is made; what raises instead."""
