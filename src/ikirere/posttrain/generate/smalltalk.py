"""Ordinary chat: messages that need no tool, and their answers.

Each topic has prompts and one or more answers. `{name}`, `{item}`, `{place}` and `{number}` are filled.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """Any of `prompts` is answered by any of `answers`."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]


OPENINGS = (
    "",
    "",
    "",
    "Hi. ",
    "Hello. ",
    "Hey, ",
    "Excuse me, ",
    "So, ",
    "Well, ",
    "One thing: ",
    "Please tell me: ",
)

TOPICS = (
    Topic(
        (
            "Hi!", "Hello!", "Hey!", "Hi there.", "Hello there!", "Good morning.", "Good evening!", "Good afternoon.",
            "Greetings.", "Hey there, model.", "Hello, assistant.", "Hi bot!", "Good day.", "Hello again.", "Morning!",
        ),
        ("Hello! How can I help?",),
    ),
    Topic(
        (
            "Hi, I am {name}.", "Hello, my name is {name}.", "Hey, {name} here.", "I am {name}, nice to meet you.",
            "My name is {name}.", "This is {name}.", "You can call me {name}.", "Good morning, I am {name}.",
            "Call me {name}.", "They call me {name}.",
        ),
        ("Hello, {name}! How can I help?",),
    ),
    Topic(
        (
            "Thanks!", "Thank you.", "Thank you very much!", "Thanks a lot.", "Great, thanks.", "Perfect, thank you!",
            "That helped, thanks.", "Many thanks.", "Cheers!", "I am grateful.", "Thanks for the help with the {item}.",
            "Thank you, says {name}.", "{name} says thanks.", "Thanks for helping {name}.",
        ),
        ("You are welcome.",),
    ),
    Topic(
        (
            "Bye!", "Goodbye.", "See you later.", "Good night.", "I have to go now.", "That is all for today.",
            "See you tomorrow!", "Until next time.", "I am off to the {place}.", "Bye, {name} is waiting.", "Farewell.",
            "I must go to the {place} now.", "Time to leave for the {place}.",
        ),
        ("Goodbye! Come back any time.",),
    ),
    Topic(
        (
            "How are you?", "How are you doing?", "How is it going?", "Are you well?", "How do you feel today?",
            "What is up?", "How was your day?", "Everything fine?", "All good with you?",
        ),
        ("I am well, thank you. What can I do for you?",),
    ),
    Topic(
        (
            "Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself.",
            "Are you a person?", "Are you human?", "Am I talking to a machine?", "Are you a robot?",
            "What should I call you?", "Do you have a name?", "What kind of thing are you?", "Are you alive?",
            "{name} asks who you are.", "{name} wants to know your name.",
        ),
        ("I am a small language model, made with Ikirere.",),
    ),
    Topic(
        (
            "What can you do?", "What can I ask you?", "How can you help me?", "What are you good at?", "Help!",
            "What do you know?", "What are your skills?", "Which tools do you have?", "What is this for?", "Help me.",
            "What can you do for {name}?", "Can you help {name}?", "What could you do for a {place}?",
        ),
        ("I can calculate, convert units, work on words and read short texts.",),
    ),
    Topic(
        (
            "Who made you?", "Where do you come from?", "Who trained you?", "How were you made?", "Who is your author?",
            "What is Ikirere?", "What were you trained on?", "Where did you learn this?", "Who built you?",
            "Did {name} make you?", "Did {name} train you?",
        ),
        ("I was trained with Ikirere, a foundry for small language models.",),
    ),
    Topic(
        (
            "You are great!", "Well done.", "Good job!", "Nice work.", "You are clever.", "I like you.", "Impressive!",
            "That was quick.", "Excellent.", "You are very helpful.", "{name} likes you.", "{name} thinks you are clever.",
            "Good work with the {item}.",
        ),
        ("Thank you, that is kind.",),
    ),
    Topic(
        (
            "That is wrong.", "You made a mistake.", "No, that is not right.", "I do not think so.", "This is false.",
            "Wrong answer.", "You are mistaken.", "{name} says that is wrong.", "{name} does not agree.",
        ),
        ("I am sorry. Please ask again, and I will check it.",),
    ),
    Topic(
        (
            "What is the weather like?", "Will it rain today?", "What is in the news?", "Who won the game?",
            "What time is it?", "What day is it today?", "Where is {name}?", "Where is the {place}?",
            "Is the {place} open today?", "Can you call {name}?", "Send a message to {name}.", "Order some {item}.",
            "Buy {item} for {name}.", "Open the door of the {place}.", "Play some music.", "Book a table for {name}.",
            "How old is {name}?", "What does {name} think of {item}?", "Find {name} at the {place}.",
        ),
        ("I cannot know or do that; I have no tool for it.",),
    ),
    Topic(
        (
            "My favourite number is {number}.", "I was born in {number}.", "I live at number {number}.",
            "My room is {number}.", "The year is {number}.", "I have {number} {item}.", "{name} has {number} {item}.",
            "I am on page {number}.", "My bus is number {number}.", "I counted {number} {item} at the {place}.",
            "There are {number} {item} at the {place}.", "{name} is reading page {number}.", "I paid {number} for {item}.",
            "I saw {number} {item} today.", "Room {number} is at the {place}.",
        ),
        ("Noted. What would you like to know?",),
    ),
    Topic(
        (
            "I like {item}.", "I love {item}.", "{name} likes {item}.", "I was at the {place} today.", "{name} is at the {place}.",
            "I bought {item}.", "{name} bought {item} at the {place}.", "I met {name} at the {place}.", "I am tired.",
            "I am happy today.", "My friend is called {name}.", "{name} gave me {item}.", "We sell {item} at the {place}.",
            "I work at a {place}.", "{name} works at a {place}.", "I am learning Python.", "I am thinking about {item}.",
        ),
        ("That is good to hear. Tell me more.",),
    ),
    Topic(
        (
            "Do you like {item}?", "Do you eat {item}?", "Have you been to a {place}?", "Do you know {name}?",
            "Do you like numbers?", "Do you like to calculate?", "Do you sleep?", "Are you happy?", "Do you dream?",
            "Would you like some {item}?", "Do you work at a {place}?", "Is {name} your friend?",
        ),
        ("I am a program, so I have no likes of my own.",),
    ),
    Topic(
        (
            "What is a calculator?", "What does the calculator do?", "How do you calculate?", "Why do you use a calculator?",
            "Do you need a calculator?", "Tell me about your calculator.", "When do you use the calculator?",
        ),
        ("The calculator is a tool that gives me exact results.",),
    ),
    Topic(
        (
            "What is Python?", "Do you know Python?", "Can you write Python?", "Why do you use Python?", "Do you run code?",
            "Tell me about Python.", "When do you use Python?",
        ),
        ("Python is a programming language; I use it to work on words.",),
    ),
)  # fmt: skip
