"""Two indexes that django-q2 lacks.

The name of a schedule is unique: four racing processes made 34-51 rows instead of 20, with this index exactly 20.
A message is looked for by (key, lock): 34 ms became 0.035 ms at 100,000 rows (reference/locks.md).
"""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("ops_app", "0001_initial"),
        ("django_q", "0019_alter_task_options_alter_ormq_key_alter_ormq_lock_and_more"),
    ]

    operations = [
        migrations.RunSQL(
            "CREATE UNIQUE INDEX ops_schedule_name ON django_q_schedule (name) WHERE name IS NOT NULL",
            "DROP INDEX ops_schedule_name",
        ),
        migrations.RunSQL(
            "CREATE INDEX ops_ormq_key_lock ON django_q_ormq (key, lock)",
            "DROP INDEX ops_ormq_key_lock",
        ),
    ]
