"""What a step costs: names of its phases, launches, arithmetic, recorded times, and what to do."""
