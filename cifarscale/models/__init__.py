"""Networks and nothing else: they know neither data, nor training, nor recipes."""
