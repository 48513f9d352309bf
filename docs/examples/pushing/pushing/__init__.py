"""A pusher that pushes a block to a target: an environment and its task for diffplan.

Importing the package registers the environment with Gymnasium; it must not import diffplan for that.
"""

import gymnasium

ENV_ID = "pushing/Push-v0"


def register_envs() -> None:
    """Register the environment; doing so again changes nothing. The entry point of the group `gymnasium.envs`."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            ENV_ID,
            entry_point="pushing.environment:PushingEnv",
            vector_entry_point="pushing.vector:PushingVectorEnv",
            max_episode_steps=120,
        )


register_envs()
