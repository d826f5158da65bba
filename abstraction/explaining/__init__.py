"""What an experiment would cost before it runs: every heavy driver at its shapes, on devices that need not be there."""

from abstraction.explaining.cases import Asks as Asks
from abstraction.explaining.cases import Case as Case
from abstraction.explaining.cases import Driver as Driver
from abstraction.explaining.cases import Searches as Searches
from abstraction.explaining.cases import shape as shape
from abstraction.explaining.operations import count_operations as count_operations
from abstraction.explaining.planned import Planned as Planned
from abstraction.explaining.planned import Where as Where
from abstraction.explaining.planned import plan_case as plan_case
from abstraction.explaining.planned import plan_driver as plan_driver
from abstraction.explaining.reducing import Reading as Reading
from abstraction.explaining.reducing import Reducing as Reducing
