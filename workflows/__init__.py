"""Jobs as values, the plans they become, the engines that run plans and the steps themselves."""
