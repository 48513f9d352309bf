"""Tasks: what the platform knows about families of environments, beyond Gymnasium's interface.

`task` is the contract, `registry` finds tasks, `gymnasium` is the task of every environment that no other task claims.
Each family is a package here, and no other module names it; installed packages can add families in the same way.
"""
