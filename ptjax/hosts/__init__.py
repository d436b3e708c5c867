"""The processes of one run: how they join, what they tell each other, how they end together."""
