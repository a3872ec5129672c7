"""Why a quantized model answers worse than its parent: what each layer and linear lost, what its inputs are like, what
was clipped, and what to try. From the two stored artifacts and windows alone, whoever quantized them."""
