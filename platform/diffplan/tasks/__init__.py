"""Tasks: what the platform knows of families of environments beyond Gymnasium's interface.

`task` is the contract, `registry` finds tasks, `gymnasium` is the task of every environment that no other task claims.
Each family is a package here, and the only place that says its name; an installed package can do the same from outside.
"""
