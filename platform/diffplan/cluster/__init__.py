"""diffplan on Ray: the only part that imports it."""

from diffplan.cluster.variables import check_variables

check_variables()
