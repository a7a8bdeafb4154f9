"""`edgeft init DIR --data FILE`: a recipe that fits the data, and the data split for it."""
