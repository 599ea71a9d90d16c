"""Nodes: routes ask, the service records, the observer takes in what they say, health watches over them."""
