"""A soak run: the gateway and two stand-ins in processes of their own, mixed traffic, faults on and off."""
