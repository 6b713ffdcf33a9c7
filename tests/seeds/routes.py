"""An application typed in from a guide: a route that caches, one that invalidates, one that enqueues an e-mail.

``uvicorn routes:app`` serves it.
"""

from fastapi import APIRouter, Depends, FastAPI
from sqlalchemy.orm import Session

from app.core.cache import cache
from app.core.database import get_db
from app.models.user import User
from app.schemas import UserCreate, UserRead, UserUpdate
from app.workers.tasks import send_welcome_email

router = APIRouter()


@router.get("/users/{user_id}", response_model=UserRead | None)
def get_user(user_id: int, db: Session = Depends(get_db)):
    # Try cache first
    cache_key = f"user:{user_id}"
    user = cache().get(cache_key)

    if user is None:
        # Cache miss - fetch from database
        user = User.get(db, id=user_id)
        if user:
            # Store in cache for 5 minutes
            cache().put(cache_key, user, ttl=300)

    return user


@router.put("/users/{user_id}", response_model=UserRead)
def update_user(user_id: int, changes: UserUpdate, db: Session = Depends(get_db)):
    user = User.update(db, id=user_id, obj_in=changes)

    # Invalidate cache after update
    cache().forget(f"user:{user_id}")

    return user


@router.post("/register", response_model=UserRead)
def register(user_data: UserCreate, db: Session = Depends(get_db)):
    user = User.create(db, obj_in=user_data)

    # Send welcome email in background
    send_welcome_email.delay(user.id)

    return user


app = FastAPI()
app.include_router(router)
