"""Devices: how they are named, what they may hold, and what a machine has."""
