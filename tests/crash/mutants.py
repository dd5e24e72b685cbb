ALL: dict = {}
