"""The gateway: one local OpenAI-compatible address in front of vLLM servers."""
