"""How plans become actions: controllers, rules of replanning, and the policy that joins them with a planner."""
