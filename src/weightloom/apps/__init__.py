"""Applications, composed from all other rooms: few-shot learning and reinforcement learning."""
