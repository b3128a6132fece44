"""The networks, as their papers draw them; they know nothing of what counts them."""
