"""Generator of clients, leads and activities, and of the truth planted in them."""
