"""The networks that stylizers are made of."""
