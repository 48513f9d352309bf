"""Policies that planners are compared with."""
