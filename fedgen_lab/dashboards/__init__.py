"""What a learner turns and watches: jobs that can be stopped, knobs, charts, and one module per dashboard.

Widgets hold no science here: every dashboard calls functions of the other rooms that work without it.
"""


def lora_dashboard(**changes):
    """Show the federated LoRA dashboard of lab 03 (see `fedgen_lab.dashboards.lora.lora_dashboard`)."""
    from fedgen_lab.dashboards.lora import lora_dashboard

    return lora_dashboard(**changes)


def rules_dashboard(**changes):
    """Show the dashboard of lab 04 (see `fedgen_lab.dashboards.rules.rules_dashboard`)."""
    from fedgen_lab.dashboards.rules import rules_dashboard

    return rules_dashboard(**changes)
