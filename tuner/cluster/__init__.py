"""The machines: which Ray, which nodes, how much of them."""
